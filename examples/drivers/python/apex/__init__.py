"""The driver apex: driver.py has its code."""
