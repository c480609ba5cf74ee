"""python -m emjax.report: the paper's printed results (emjax.report.paper)."""

from emjax.report.paper import main

if __name__ == "__main__":
    main()
