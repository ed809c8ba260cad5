"""Room 4, instruments: open a trained agent, look, cut, and put everything back."""
