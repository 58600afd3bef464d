"""What classifiers are and stand on: below routing, plugins and calibration, which all import it."""
