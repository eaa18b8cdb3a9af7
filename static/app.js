// Enhancements of the staff pages beyond plain HTML and htmx. All pages also work without this file.
(() => {
  "use strict";

  // The texts that this file shows, translated by the server (ui.script_texts).
  const texts = JSON.parse(document.body.dataset.texts);

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // Run a function for the page, and for every element that htmx adds later.
  const onContent = (prepare) => {
    prepare(document);
    document.addEventListener("htmx:after:process", (event) => {
      if (event.target instanceof Element) prepare(event.target);
    });
  };
  const all = (root, selector) => [
    ...(root instanceof Element && root.matches(selector) ? [root] : []),
    ...root.querySelectorAll(selector),
  ];

  // --- theme ---------------------------------------------------------------------------------------

  const showTheme = () => {
    for (const group of document.querySelectorAll("[data-theme-choice]")) {
      if (group === document.documentElement) continue;
      group.hidden = false;
      for (const button of group.querySelectorAll("button")) {
        const chosen = document.documentElement.dataset.themeChoice === button.dataset.theme;
        button.setAttribute("aria-pressed", String(chosen));
        button.classList.toggle("active", chosen);
      }
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-theme-choice] > button");
    if (!button) return;
    document.dispatchEvent(new CustomEvent("onecode:choose-theme", { detail: button.dataset.theme }));
  });
  document.addEventListener("onecode:theme", showTheme);
  showTheme();

  // --- messages ------------------------------------------------------------------------------------

  const toasts = make("div", { className: "toast-container position-fixed bottom-0 end-0 p-3" });
  toasts.setAttribute("aria-live", "polite");
  document.body.append(toasts);

  const toast = (text) => {
    // A fragment that polls would otherwise repeat the same error every few seconds.
    if ([...toasts.children].some((shown) => shown.dataset.text === text)) return;
    const close = make("button", { type: "button", className: "btn-close m-auto me-2", ariaLabel: texts.dismiss });
    const body = make("div", { className: "toast-body", textContent: text });
    const box = make("div", { className: "toast show d-flex border-danger" }, body, close);
    box.dataset.text = text;
    close.addEventListener("click", () => box.remove());
    toasts.append(box);
  };

  document.addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
    // 400, 409 and 422 have a fragment to show; the others must not replace a part of the page.
    const { status } = ctx.response;
    const message = texts[`error${status}`];
    if (!message && status < 500) return;
    const page = new DOMParser().parseFromString(ctx.text, "text/html");
    const detail = page.querySelector("[data-error-detail]")?.textContent.trim();
    toast(detail || message || texts.error);
  });
  document.addEventListener("htmx:error", ({ detail }) => {
    if (detail.ctx) toast(texts.offline);
  });
  document.addEventListener("htmx:before:response", (event) => {
    // An expired session redirects to the sign-in page, which must not be shown inside a fragment.
    const { raw } = event.detail.ctx.response;
    if (!raw.redirected || new URL(raw.url).pathname.split("/").pop() !== "sign-in") return;
    event.preventDefault();
    location.reload();
  });

  // --- copying -------------------------------------------------------------------------------------

  onContent((root) => {
    for (const button of all(root, "[data-copy]")) button.hidden = false;
  });
  const copyText = async (text, button) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // There is no clipboard over plain HTTP, except on localhost: select the text instead.
    getSelection().selectAllChildren(button.closest(".copy").querySelector(".copy-text"));
    if (!document.execCommand("copy")) throw new Error("not copied");
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const label = button.querySelector("[data-copy-label]");
    label.dataset.before ??= label.textContent;
    try {
      await copyText(button.dataset.copy, button);
      label.textContent = texts.copied;
    } catch {
      label.textContent = texts.copyByKeyboard;
    }
    setTimeout(() => (label.textContent = label.dataset.before), 2000);
  });

  // --- menus close on a click outside and on Escape ------------------------------------------------

  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details[data-dismiss][open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const menu = event.target.closest("details[data-dismiss][open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // --- confirmation --------------------------------------------------------------------------------

  // Resolves to true only if the user confirmed the action.
  const confirmAction = (question, action, danger) =>
    new Promise((resolve) => {
      const confirmButton = make("button", {
        type: "button",
        className: danger ? "btn btn-danger" : "btn btn-primary",
        textContent: action,
      });
      const cancelButton = make("button", { type: "button", className: "btn", textContent: texts.cancel });
      const text = make("p", { className: "confirm-question", textContent: question, id: "dialog-question" });
      const dialog = make("dialog", { className: "dialog" }, text);
      dialog.append(make("div", { className: "btn-list justify-content-end" }, cancelButton, confirmButton));
      dialog.setAttribute("aria-labelledby", "dialog-question");
      cancelButton.addEventListener("click", () => dialog.close());
      confirmButton.addEventListener("click", () => dialog.close("confirmed"));
      dialog.addEventListener("close", () => {
        dialog.remove();
        resolve(dialog.returnValue === "confirmed");
      });
      document.body.append(dialog);
      dialog.showModal();
    });

  // The form of a confirm_button moves into a dialog, and back when the dialog closes.
  const openInDialog = (details) => {
    const form = details.querySelector("form");
    const question = form.querySelector(".confirm-question");
    const dialog = make("dialog", { className: "dialog" }, form);
    question.id = "dialog-question";
    dialog.setAttribute("aria-labelledby", question.id);
    form.querySelector("[data-close]").hidden = false;
    document.body.append(dialog);
    dialog.addEventListener("close", () => {
      // A fragment that was refreshed since has a new copy of the form.
      details.querySelector("form")?.remove();
      details.append(form);
      form.querySelector("[data-close]").hidden = true;
      question.removeAttribute("id");
      dialog.remove();
      if (details.isConnected) details.querySelector("summary").focus();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) dialog.close();
    });
    dialog.showModal();
  };
  document.addEventListener("click", (event) => {
    const details = event.target.closest("summary")?.closest("details[data-confirm-details]");
    if (!details) return;
    event.preventDefault();
    openInDialog(details);
  });

  const confirmedForms = new WeakSet();
  document.addEventListener(
    "submit",
    (event) => {
      const form = event.target;
      const question = event.submitter?.dataset.confirm ?? form.dataset.confirm;
      if (!question || confirmedForms.delete(form) || form.closest("dialog, details[data-confirm-details]")) return;
      // This runs before htmx or the browser sends a request.
      event.preventDefault();
      event.stopImmediatePropagation();
      const { submitter } = event;
      const label = submitter?.textContent.trim() || texts.confirm;
      confirmAction(question, label, submitter?.matches(".btn-danger, .btn-outline-danger")).then((isConfirmed) => {
        if (!isConfirmed) return submitter?.focus();
        confirmedForms.add(form);
        form.requestSubmit(submitter);
      });
    },
    true,
  );
  document.addEventListener("htmx:confirm", (event) => {
    event.preventDefault();
    const { ctx, issueRequest, dropRequest } = event.detail;
    const label = ctx.sourceElement.textContent.trim();
    const danger = ctx.sourceElement.matches(".btn-danger, .btn-outline-danger");
    confirmAction(ctx.confirm, label.length < 40 ? label : texts.confirm, danger).then((isConfirmed) =>
      isConfirmed ? issueRequest() : dropRequest(),
    );
  });

  // --- line breaks in addresses ----------------------------------------------------------------------

  // A narrow column breaks an address after its punctuation, not before its last letter. A fragment that polls stays as
  // the server rendered it: htmx could not match its elements with those of the next response.
  const allowBreaks = (text) => {
    const parts = text.data.match(/[^@._+-]*[@._+-]*/g).filter(Boolean);
    if (parts.length > 1) text.replaceWith(...parts.flatMap((part) => [part, make("wbr")]).slice(0, -1));
  };
  onContent((root) => {
    for (const cell of all(root, ".table td, .table th")) {
      if (cell.closest("[hx-trigger]")) continue;
      const found = [];
      const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) if (walker.currentNode.data.includes("@")) found.push(walker.currentNode);
      found.forEach(allowBreaks);
    }
  });

  // --- one submit at a time --------------------------------------------------------------------------

  // The button stays focusable: disabling it would move the keyboard focus.
  const busy = new Map();
  const release = (form) => {
    clearTimeout(busy.get(form));
    busy.delete(form);
    form.removeAttribute("aria-busy");
    for (const button of form.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
  };
  document.addEventListener(
    "submit",
    (event) => {
      if (!busy.has(event.target)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
    },
    true,
  );
  document.addEventListener("submit", (event) => {
    const form = event.target;
    const dialog = form.closest("dialog");
    const isSent = !event.defaultPrevented || form.hasAttribute("data-htmx-powered");
    if (isSent && form.method === "post" && !form.hasAttribute("data-repeat")) {
      event.submitter?.setAttribute("aria-busy", "true");
      // A download does not leave the page, so that no event shows that it is complete.
      busy.set(form, setTimeout(release, 10000, form));
    }
    if (dialog && form.hasAttribute("data-htmx-powered")) dialog.close();
  });
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    const form = ctx.request.form ?? ctx.sourceElement;
    if (busy.has(form)) release(form);
  });
  // The browser's back button shows the page in the state in which it was left.
  addEventListener("pageshow", () => [...busy.keys()].forEach(release));

  // --- signing out in every tab ------------------------------------------------------------------------

  // Pages in other tabs still show data of the user who has signed out here.
  const tabs = new BroadcastChannel("signed-out");
  const signOutForm = document.querySelector('form[action$="/sign-out"]');
  if (signOutForm) {
    tabs.addEventListener("message", () => location.replace(signOutForm.action.replace(/sign-out$/, "sign-in")));
  } else if (location.hash === "#signed-out") {
    tabs.postMessage(null);
    // The next page would keep the fragment.
    history.replaceState(history.state, "", location.pathname + location.search);
  }

  // --- a frame with a preview of an unsaved form ---------------------------------------------------------

  const fillFrame = (frame) => {
    const { filledBy, filledFrom, filled } = frame.dataset;
    const form = document.getElementById(filledBy);
    if (!form || filled) return;
    frame.dataset.filled = "yes";
    frame.hidden = false;
    const copy = make("form", { method: "post", action: filledFrom, target: frame.name, hidden: true });
    for (const [name, value] of new FormData(form)) copy.append(make("textarea", { name, value }));
    document.body.append(copy);
    // submit() fires no submit event, so that the handlers above do not run.
    copy.submit();
    copy.remove();
  };
  onContent((root) => all(root, "iframe[data-filled-by]").forEach(fillFrame));

  // --- polling and focus -----------------------------------------------------------------------------

  document.addEventListener("htmx:before:request", (event) => {
    const { ctx } = event.detail;
    if (ctx.sourceEvent?.type === "every" && document.hidden) event.preventDefault();
  });

  // outerMorph keeps the focused element, and outerHTML finds an element with the same id. If the response to an
  // action has no such element, the focus moves to the fragment that it was in.
  let fragment = null;
  document.addEventListener("htmx:before:swap", ({ detail: { ctx, tasks } }) => {
    const targets = ctx.sourceEvent?.type === "every" ? [] : tasks.map(({ target }) => target);
    fragment = targets.find((target) => target instanceof Element && target.contains(document.activeElement));
  });
  document.addEventListener("htmx:after:swap", () => {
    if (!fragment?.isConnected || (document.activeElement ?? document.body) !== document.body) return;
    if (!fragment.hasAttribute("tabindex")) fragment.tabIndex = -1;
    fragment.focus({ preventScroll: true });
  });

  // --- charts ------------------------------------------------------------------------------------------

  const HEIGHT = 224;
  const charts = new Map();
  let library;
  const loadLibrary = (source) =>
    (library ??= new Promise((resolve, reject) => {
      const script = make("script", { src: source });
      script.addEventListener("load", resolve);
      script.addEventListener("error", reject);
      document.head.append(script);
    }));

  const css = (element, value) => {
    // Resolves variables and light-dark() to a colour that a canvas supports.
    const probe = make("span", { hidden: true });
    probe.style.color = value;
    element.append(probe);
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
  };
  const COLOURS = ["primary", "purple", "warning", "info"].map((name) => `var(--tblr-${name})`);
  const DASHES = [undefined, [6, 4], [2, 3], [10, 3, 2, 3]];
  const fade = (element, colour) => css(element, `color-mix(in srgb, ${colour} 14%, transparent)`);

  const draw = (figure) => {
    const plot = figure.querySelector("[data-chart-plot]");
    const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const isDaily = typeof data.x[0] === "string";
    const xs = isDaily ? data.x.map((day) => Date.parse(`${day}T00:00:00Z`) / 1000) : data.x;
    const zone = isDaily ? "UTC" : data.tz;
    const language = document.documentElement.lang || undefined;
    // The day comes first, as in all other dates of the page.
    const dateLocale = language === "en" ? "en-GB" : language;
    const dayFormat = new Intl.DateTimeFormat(dateLocale, { day: "numeric", month: "short", timeZone: zone });
    const timeFormat = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", timeZone: zone });
    const fullFormat = new Intl.DateTimeFormat(dateLocale, {
      dateStyle: isDaily ? "long" : "medium",
      ...(isDaily ? {} : { timeStyle: "short" }),
      timeZone: zone,
    });
    const number = new Intl.NumberFormat(language);
    const axis = {
      stroke: css(figure, "var(--tblr-secondary)"),
      grid: { stroke: css(figure, "var(--tblr-border-color)"), width: 1 },
      ticks: { show: false },
      font: `12px ${getComputedStyle(document.body).fontFamily}`,
    };
    const bars = data.kind === "bars";
    const last = xs.length - 1;
    const showLast = (chart) => {
      if (chart.cursor.idx == null && last >= 0) chart.setLegend({ idx: last }, false);
    };
    const options = {
      width: plot.clientWidth || figure.clientWidth,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), zone || "UTC"),
      cursor: { y: false, drag: { x: false, y: false } },
      // Half a bar of padding at both ends, so that the outer bars are not clipped.
      scales: {
        x: { time: true, range: bars ? (_, low, high) => paddedRange(low, high, xs) : undefined },
        y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 0, 1) * 1.08] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 32,
          space: 70,
          incrs: isDaily ? [1, 2, 3, 7, 14, 28, 91, 182, 365].map((n) => n * 86400) : undefined,
          values: (_, splits, __, ___, step) =>
            splits.map((at) => (step >= 86400 ? dayFormat : timeFormat).format(at * 1000)),
        },
        {
          ...axis,
          size: (_, labels) => 14 + 7 * Math.max(3, ...(labels ?? []).map((label) => label.length)),
          incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6],
          values: (_, splits) => splits.map((value) => number.format(value)),
        },
      ],
      series: [
        { label: data.x_label || texts.day, value: (_, at) => (at == null ? "" : fullFormat.format(at * 1000)) },
        ...data.series.map((line, index) => {
          const colour = css(figure, COLOURS[index % COLOURS.length]);
          return {
            label: line.label,
            stroke: colour,
            width: bars ? 0 : 2,
            dash: bars ? undefined : DASHES[index % DASHES.length],
            fill: bars ? colour : index === 0 ? fade(figure, colour) : undefined,
            paths: bars ? uPlot.paths.bars({ size: [0.72, 40], radius: 0.15 }) : undefined,
            points: { show: !bars && xs.length < 2 },
            value: (_, value) => (value == null ? "–" : number.format(value)),
          };
        }),
      ],
      hooks: { ready: [showLast], setCursor: [showLast] },
    };
    charts.get(figure)?.destroy();
    plot.replaceChildren();
    charts.set(figure, new uPlot(options, [xs, ...data.series.map((line) => line.values)], plot));
    figure.dataset.drawn = "";
  };
  const paddedRange = (low, high, xs) => {
    const step = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) : 86400;
    return [(low ?? 0) - step / 2, (high ?? 0) + step / 2];
  };

  const widths = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const chart = charts.get(target.closest("[data-chart]"));
      if (chart && contentRect.width) chart.setSize({ width: contentRect.width, height: HEIGHT });
    }
  });
  onContent((root) => {
    for (const [figure, chart] of charts) {
      if (figure.isConnected) continue;
      chart.destroy();
      charts.delete(figure);
    }
    for (const figure of all(root, "[data-chart]:not([data-drawn])")) {
      loadLibrary(figure.dataset.library).then(() => {
        if (!figure.isConnected || charts.has(figure)) return;
        draw(figure);
        widths.observe(figure.querySelector("[data-chart-plot]"));
      });
    }
  });
  document.addEventListener("onecode:theme", () => [...charts.keys()].forEach(draw));
})();
