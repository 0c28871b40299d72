// The page of a run that trains is written anew meanwhile; it is not loaded while somebody searches in it or listens.
setInterval(() => {
  const searched = document.getElementById('clip-query')?.value;
  const heard = [...document.querySelectorAll('audio')].some(player => !player.paused);
  if (!searched && !heard) location.reload();
}, 30000);
