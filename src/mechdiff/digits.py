"""Numbers are printed with so many decimals, and never as 0 (or 100 %) where they are not.

A table of fixed decimals prints 7e-6 as 0.0000, and a reader takes it for nothing. What would round to 0 is printed with its own two digits.
"""


def fixed(value: float, decimals: int = 4) -> str:
    """ "0.1234"; "7.1e-06" or "0.2" where that many decimals would print 0 of what is not."""
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return f"{value:.2g}" if value else text.removeprefix("-")
    return text


def percent(value: float, decimals: int = 0) -> str:
    """A share from 0 to 1 as "12%"; "0.03%" and ">99%" where it would print as none or all."""
    text = fixed(100 * value, decimals)
    if float(text) == 100 and value < 1:
        return f">{fixed(100 - 10**-decimals, decimals)}%"
    return f"{text}%"
