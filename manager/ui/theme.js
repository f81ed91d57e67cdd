// Before the first paint, so that a chosen theme does not flash. A classic script: modules run after the paint.
document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";
