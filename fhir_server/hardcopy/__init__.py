"""Hard copy: what is ordered, for which device, and the job that comes of it: for worker, preview and agent alike."""
