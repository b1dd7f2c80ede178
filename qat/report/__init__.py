"""Reports: finished runs as tables, figures, pages and cards."""
