-- One replica asks how many calls of one account it may have in flight.
--
-- KEYS[1]  a hash: <replica> -> "<slots>|<in use>|<until>": it may use so many, used so many when it last
--          asked, and has them until this moment (milliseconds of this server's clock).
-- ARGV     replica, limit, in use, want, share, lease (ms)
-- Answer   granted, in use everywhere
local key, me = KEYS[1], ARGV[1]
local limit, in_use = tonumber(ARGV[2]), tonumber(ARGV[3])
local want, share, lease_millis = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local others_leased, others_use = 0, 0
local flat = redis.call('HGETALL', key)
for i = 1, #flat, 2 do
  if flat[i] ~= me then
    local slots, used, untilwhen = string.match(flat[i + 1], '^(%d+)|(%d+)|(%d+)$')
    if slots and tonumber(untilwhen) > now then
      others_leased = others_leased + tonumber(slots)
      others_use = others_use + tonumber(used)
    else
      redis.call('HDEL', key, flat[i])
    end
  end
end

local left = limit - others_leased - in_use
local granted = 0
if want > 0 and left > 0 then
  granted = math.min(left, math.max(want, share))
end
if in_use + granted > 0 then
  local lease = string.format('%.0f|%.0f|%.0f', in_use + granted, in_use, now + lease_millis)
  redis.call('HSET', key, me, lease)
else
  redis.call('HDEL', key, me)
end
-- Outlives every lease in it, also those of replicas that lease for longer.
if redis.call('PTTL', key) < 2 * lease_millis then
  redis.call('PEXPIRE', key, 2 * lease_millis)
end
return { granted, others_use + in_use }
