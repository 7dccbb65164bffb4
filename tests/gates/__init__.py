"""What stands guard over compiled code: SASS, memory traffic, launches, C++ tests."""
