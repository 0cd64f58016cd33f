"""What the broker tells of itself in numbers: one table of them, and the two that read it, $SYS and the page for Prometheus."""
