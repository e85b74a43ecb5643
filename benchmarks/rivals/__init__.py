"""The methods that avbvi is measured against, by kind, each with the settings that its user would give it."""
