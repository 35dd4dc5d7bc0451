"""What people see: progress, reports, tables and charts. The only user of rich."""
