"""From a plan to bytes: what computes, writes and reports."""
