"""What a store must do for queues, results and periodic tasks, as protocols."""
