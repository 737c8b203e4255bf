/* Brings the instrument to the pages that have a place for it. A page that lies on a disk may load no modules. */
(() => {
  const places = document.querySelectorAll("div.instrument");
  const say = (text) => places.forEach((div) => { div.textContent = text; });
  if (location.protocol === "file:") say("A language model can run here, but not in a page that is opened from a disk: open it from its address, or by make serve.");
  else import(new URL("instrument/instrument.mjs", document.currentScript.src).href).catch(() => say("The program that runs the model in this page did not load. The figures need none."));
})();
