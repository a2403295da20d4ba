"""What travels: the values of Machinery's wire, and the same values as bytes."""
