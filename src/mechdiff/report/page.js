"use strict";
// What a mark or a token stands for (its site, value and interval), beside the pointer or the finger.
const tip = document.getElementById("tip");

function mark(target) {
  const found = target instanceof Element ? target.closest(".plot svg [aria-roledescription][aria-label], .tokens [data-says]") : null;
  return found && (found.dataset.says || /^(circle|point|bar|rect mark)$/.test(found.getAttribute("aria-roledescription"))) ? found : null;
}

function show(event) {
  const found = mark(event.target);
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.dataset.says || found.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
}

document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
