"""Small studies, data and fakes that several tests share."""
