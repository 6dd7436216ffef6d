"""What a step costs: operations, terms, drafts, ranks in step, host overheads."""
