"""What every half uses and none owns."""
