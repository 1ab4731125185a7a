"""One function a verb: take the parsed flags, call a library function, show what it returned."""
