"""A campaign of cuts: deploys that are interrupted at random moments, and what they leave."""
