"""What was measured: data first (`report.json`), page second (`report.html`)."""
