"""What commands write: sets of files that change as one, locks, inputs that are never overwritten, and resuming."""
