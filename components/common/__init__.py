"""What the stages stand on: the spec, examples, storage, the store, models, statistics, tracking."""
