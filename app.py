"""The page: `python app.py`, or the entry point of a Space."""

from app.serve import main

if __name__ == "__main__":
    main()
