// Ready-made examples: the server is told which was pressed, and its answers stand in the first tab.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-at]");
  if (!button) return;
  document.querySelector('.cast-tabs button[role="tab"]')?.click();
  trigger("select", { at: Number(button.dataset.at) });
});
