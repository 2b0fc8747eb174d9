"""Teaching: select supports, audit them, and calibrate a class, with an open inspector."""
