"""Whether a process is alive, ready and started: seen on its event loop, judged by a pure function, told over HTTP."""
