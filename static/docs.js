// Renders the OpenAPI document.
SwaggerUIBundle({
  url: document.getElementById("api-docs").dataset.openapiUrl,
  dom_id: "#api-docs",
  deepLinking: true,
  // Schemas are shown with the operations that use them; the list of all schemas is collapsed.
  defaultModelsExpandDepth: 0,
  // Do not send the document to an external validator.
  validatorUrl: null,
});
