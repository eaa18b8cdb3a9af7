// Passkeys (Web Authentication). A form with data-passkey-create (options as JSON) or data-passkey-get (URL of the
// options) gets the response of the browser in its field "credential" and is then submitted. Texts are data attributes.
(() => {
  "use strict";

  if (!window.PublicKeyCredential) return;

  const decode = (text) =>
    Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
  const encode = (buffer) =>
    btoa(String.fromCharCode(...new Uint8Array(buffer)))
      .replaceAll("+", "-")
      .replaceAll("/", "_")
      .replaceAll("=", "");
  const describe = (credential) => ({ ...credential, id: decode(credential.id) });

  const create = async (form) => {
    const options = JSON.parse(form.dataset.passkeyCreate);
    options.challenge = decode(options.challenge);
    options.user.id = decode(options.user.id);
    options.excludeCredentials = (options.excludeCredentials ?? []).map(describe);
    const credential = await navigator.credentials.create({ publicKey: options });
    return {
      credential,
      response: {
        attestationObject: encode(credential.response.attestationObject),
        transports: credential.response.getTransports?.() ?? [],
      },
    };
  };

  const get = async (form) => {
    const headers = { "X-CSRFToken": form.elements.csrf_token.value };
    const answer = await fetch(form.dataset.passkeyGet, { method: "POST", headers });
    if (!answer.ok) throw new Error(`options: ${answer.status}`);
    const options = await answer.json();
    options.challenge = decode(options.challenge);
    options.allowCredentials = (options.allowCredentials ?? []).map(describe);
    const credential = await navigator.credentials.get({ publicKey: options });
    const { authenticatorData, signature, userHandle } = credential.response;
    return {
      credential,
      response: {
        authenticatorData: encode(authenticatorData),
        signature: encode(signature),
        ...(userHandle?.byteLength ? { userHandle: encode(userHandle) } : {}),
      },
    };
  };

  const describeError = (error, texts) => {
    if (error.name === "NotAllowedError" || error.name === "AbortError") return texts.cancelled;
    if (error.name === "InvalidStateError") return texts.exists;
    return texts.failed;
  };

  for (const form of document.querySelectorAll("form[data-passkey-create], form[data-passkey-get]")) {
    const button = form.querySelector("button");
    const message = form.querySelector("[data-passkey-error]");
    button.hidden = false;
    form.addEventListener("submit", async (event) => {
      if (form.elements.credential.value) return;
      event.preventDefault();
      button.disabled = true;
      message.hidden = true;
      try {
        const { credential, response } = await (form.dataset.passkeyCreate ? create(form) : get(form));
        form.elements.credential.value = JSON.stringify({
          id: credential.id,
          rawId: encode(credential.rawId),
          type: credential.type,
          response: { ...response, clientDataJSON: encode(credential.response.clientDataJSON) },
        });
        form.submit();
      } catch (error) {
        message.textContent = describeError(error, form.dataset);
        message.hidden = false;
        button.disabled = false;
      }
    });
  }
})();
