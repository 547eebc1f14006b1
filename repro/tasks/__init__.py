"""Problems, how they are asked, and how answers are rewarded."""
