"""What chapter 2's tables measure of the paper's claims: what the rules see."""
