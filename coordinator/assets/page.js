// Keeps a page live: parts that the server sends replace those of the same id, and times become
// relative. A page that nobody sees has no connection.
'use strict';
(() => {
  document.documentElement.classList.add('js');
  const link = document.getElementById('link');
  const label = link.querySelector('span');

  const ago = (ms) => {
    const s = Math.max(0, Math.round(ms / 1000));
    if (s < 60) return `${s} s ago`;
    if (s < 3600) return `${Math.floor(s / 60)} min ago`;
    if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s / 60) % 60)} min ago`;
    return `${Math.floor(s / 86400)} days ago`;
  };
  const times = () => {
    for (const it of document.querySelectorAll('time[datetime]')) {
      const at = Date.parse(it.dateTime);
      if (!it.title) it.title = `${it.textContent} UTC`;
      const text = at > Date.now() + 2000 ? it.title : ago(Date.now() - at);
      if (it.textContent !== text) it.textContent = text;
    }
  };

  // Whoever reads a text with the mouse or stands on a link keeps both.
  const isSelected = (part) => {
    const selection = getSelection();
    return !selection.isCollapsed && part.contains(selection.anchorNode);
  };
  const waiting = new Map();
  const replace = (part, html) => {
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const same = focused && (focused.getAttribute('href') || focused.getAttribute('aria-label'));
    const follows = part.id === 'tail' || (document.getElementById('follow') || {}).checked;
    const bottom = part.classList.contains('log') && follows;
    const lefts = [...part.querySelectorAll('.scroll')].map((it) => it.scrollLeft);
    part.innerHTML = html;
    part.querySelectorAll('.scroll').forEach((it, at) => { it.scrollLeft = lefts[at] || 0; });
    if (bottom) part.scrollTop = part.scrollHeight;
    if (same) {
      for (const it of part.querySelectorAll('a, [tabindex]')) {
        if (it.getAttribute('href') === same || it.getAttribute('aria-label') === same) {
          it.focus({ preventScroll: true });
          break;
        }
      }
    }
  };
  const apply = (id, html) => {
    const part = document.getElementById(id);
    if (!part) return;
    if (isSelected(part)) { waiting.set(id, html); return; }
    waiting.delete(id);
    replace(part, html);
    times();
    document.dispatchEvent(new CustomEvent('part', { detail: id }));
  };
  document.addEventListener('selectionchange', () => {
    for (const [id, html] of [...waiting]) apply(id, html);
  });

  const hasParts = () => {
    const comments = document.createTreeWalker(document.body, NodeFilter.SHOW_COMMENT);
    while (comments.nextNode()) if (comments.currentNode.data.startsWith('live ')) return true;
    return false;
  };

  let source = null;
  const say = (state, text) => {
    link.className = `link ${state}`;
    if (label.textContent !== text) label.textContent = text;
  };
  const open = () => {
    if (source || document.hidden || !hasParts()) return;
    // Earlier lines and older pages do not change.
    if (new URLSearchParams(location.search).has('before')) return;
    source = new EventSource(`/live?page=${encodeURIComponent(location.pathname + location.search)}`);
    source.onopen = () => say('live', 'live');
    source.onmessage = (message) => {
      const { id, html } = JSON.parse(message.data);
      apply(id, html);
    };
    source.onerror = () => {
      say('lost', 'connection lost, trying again');
      // A browser does not try again by itself after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) { close(); setTimeout(open, 3000); }
    };
  };
  const close = () => { if (source) { source.close(); source = null; } };
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) { close(); say('', 'paused'); } else { open(); }
  });
  addEventListener('pagehide', close);
  addEventListener('pageshow', open);

  // Whether a log follows its end is a choice like others, and in the address.
  const follow = document.getElementById('follow');
  if (follow) {
    follow.checked = new URLSearchParams(location.search).get('follow') !== '0';
    follow.addEventListener('change', () => {
      const query = new URLSearchParams(location.search);
      if (follow.checked) query.delete('follow'); else query.set('follow', '0');
      const text = query.toString();
      history.replaceState(null, '', (text ? `?${text}` : location.pathname) + location.hash);
    });
  }

  times();
  setInterval(times, 1000);
  for (const log of document.querySelectorAll('.log')) log.scrollTop = log.scrollHeight;
  open();
})();
