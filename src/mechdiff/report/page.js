"use strict";
// A mark's own description (its site, value and interval) beside the pointer, or beside the mark when it has the focus.
const tip = document.getElementById("tip");
function describe(target) {
  const mark = target.closest ? target.closest(".plot [aria-label]") : null;
  if (!mark || !mark.getAttribute("aria-roledescription") || /mark container|title|axis|legend|visualization/.test(mark.getAttribute("aria-roledescription"))) return null;
  return mark;
}
document.addEventListener("pointermove", (event) => {
  const mark = describe(event.target);
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
});
document.addEventListener("pointerleave", () => { tip.hidden = true; });
