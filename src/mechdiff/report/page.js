"use strict";
// What a mark stands for (its site, value and interval), beside the pointer or the finger.
const tip = document.getElementById("tip");

function mark(target) {
  const found = target instanceof Element ? target.closest(".plot svg [aria-roledescription][aria-label]") : null;
  return found && /^(circle|point|rect mark)$/.test(found.getAttribute("aria-roledescription")) ? found : null;
}

function show(event) {
  const found = mark(event.target);
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
}

document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
