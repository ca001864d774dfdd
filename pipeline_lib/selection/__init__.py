"""A budgeted choice by quality, diversity, balance and recency."""
