"""Reference methods written afresh from their papers, the data they share with ours, and the one door to ours."""
