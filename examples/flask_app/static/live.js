// Keeps the parts of the page that are marked with data-part as the server says they are now. Without this script they
// are as they were when the page was made.
"use strict";
(() => {
  const AGAIN_MS = 10_000;
  const CUT_MS = 5_000;  // streams end now and then, and the browser connects again
  const parts = [...document.querySelectorAll("[data-part]")];
  let source = null;
  let again = 0;
  let cut = 0;

  function close() {
    clearTimeout(again);
    clearTimeout(cut);
    cut = 0;
    source?.close();
    source = null;
  }

  function open() {
    close();
    source = new EventSource(document.body.dataset.live);
    source.onopen = () => {
      clearTimeout(cut);
      cut = 0;
      document.body.classList.remove("is-cut");
    };
    source.onerror = () => {
      cut ||= setTimeout(() => document.body.classList.add("is-cut"), CUT_MS);
      // The browser tries again by itself when a connection breaks off, but not after an error of the server.
      if (source.readyState === EventSource.CLOSED) again = setTimeout(open, AGAIN_MS);
    };
    for (const part of parts) {
      source.addEventListener(part.dataset.part, (event) => { part.innerHTML = event.data; });
    }
  }

  // A page that nobody sees holds no connection: browsers have six for a site, and servers only so many threads.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  if (!document.hidden) open();
})();
