-- Whether nobody has said so within the time: KEYS[1] what, ARGV[1] who says it, ARGV[2] milliseconds.
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
