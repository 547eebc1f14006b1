// The filters of the board and the sorting of tables.
(() => {
  const form = document.getElementById('filters');
  if (form) {
    const entries = [...document.querySelectorAll('.entry')];
    const show = () => {
      const asked = Object.fromEntries(new FormData(form));
      const words = asked.text.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const entry of entries) {
        const fits = ['family', 'verdict', 'scale'].every(name => !asked[name] || entry.dataset[name] === asked[name]);
        const text = entry.textContent.toLowerCase();
        entry.hidden = !(fits && words.every(word => text.includes(word)));
        shown += !entry.hidden;
      }
      document.getElementById('count').textContent = `${shown} of ${entries.length}`;
    };
    form.addEventListener('input', show);
    form.addEventListener('submit', event => event.preventDefault());
    show();
  }
  const key = cell => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = parseFloat(text.replace(/,/g, ''));
    return Number.isNaN(number) ? text : number;
  };
  for (const head of document.querySelectorAll('table.sortable thead th')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const table = head.closest('table'), column = head.cellIndex, rows = [...table.tBodies[0].rows];
      const down = head.getAttribute('aria-sort') !== 'descending';
      for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const missing = value => value === '' || value === '-';
      rows.sort((one, two) => {
        const a = key(one.cells[column]), b = key(two.cells[column]);
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const order = typeof a === typeof b ? (a > b) - (a < b) : typeof a === 'number' ? -1 : 1;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  }
})();
