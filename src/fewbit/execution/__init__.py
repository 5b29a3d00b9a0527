"""Where and how long runs live: the journal that makes one resumable, what it is identified by, what it will take."""
