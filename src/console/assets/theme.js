// A classic script, ahead of the style sheet: a page must not flash in the wrong colours before the modules have come.
(function () {
  "use strict";
  try {
    var theme = localStorage.getItem("palisade.theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch (_) {
    // No storage: the system's colours.
  }
})();
