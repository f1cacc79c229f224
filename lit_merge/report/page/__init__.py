"""A report of runs as one web page, which needs no network."""

from lit_merge.report.page.write import PAGE, report_page, write_report
