// Draws the description of the JSON calls that /api/v1/openapi.json gives.
SwaggerUIBundle({
  url: document.getElementById("calls").dataset.description,
  dom_id: "#calls",
  deepLinking: true,
  // The shapes are shown with the calls that use them; the list of all of them starts folded.
  defaultModelsExpandDepth: 0,
  // The page asks nobody else whether the description is right.
  validatorUrl: null,
});
