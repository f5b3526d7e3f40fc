-- One replica asks about one account's money in one budget period. All amounts are whole nano-dollars.
--
-- KEYS[1]  a hash: base = what the store has summed up, as far as anyone has seen;
--          u:<replica> = what that replica has written down and the store had not summed up yet;
--          l:<replica> = "<amount>|<until>": what that replica may spend besides, until this moment
--          (milliseconds of this server's clock).
-- ARGV     replica, landed, unlanded, held, want, budget, lease (ms), time to live (s), idle (0 or 1)
-- Answer   granted, spent, left after it
--
-- What a replica says is absolute and takes the place of what it said before, so a question that was
-- lost or came twice is put right by the next one.
local MOST = 9e15
local key, me = KEYS[1], ARGV[1]
local landed, unlanded, held = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local want, budget = tonumber(ARGV[5]), tonumber(ARGV[6])
local lease_millis, ttl_seconds, idle = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9] == '1'

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local base, others_spent, others_leased = 0, 0, 0
local flat = redis.call('HGETALL', key)
for i = 1, #flat, 2 do
  local field, value = flat[i], flat[i + 1]
  local kind, name = string.sub(field, 1, 2), string.sub(field, 3)
  if field == 'base' then
    base = tonumber(value) or 0
  elseif name ~= me and kind == 'u:' then
    others_spent = others_spent + (tonumber(value) or 0)
  elseif name ~= me and kind == 'l:' then
    local amount, untilwhen = string.match(value, '^(%d+)|(%d+)$')
    if amount and tonumber(untilwhen) > now then
      others_leased = others_leased + tonumber(amount)
    else
      redis.call('HDEL', key, field)
    end
  end
end

if landed > base then base = landed end
local spent = base + others_spent + unlanded
local left = budget - spent - others_leased - held
local granted = 0
if want > 0 and left > 0 and not idle then
  -- Less than is wanted when that is all there is: the one call that may go over.
  granted = math.min(left, math.max(want, math.floor(left / 16)))
end

-- `..` would round to 14 digits.
redis.call('HSET', key, 'base', string.format('%.0f', base))
if unlanded > 0 then
  redis.call('HSET', key, 'u:' .. me, string.format('%.0f', unlanded))
else
  redis.call('HDEL', key, 'u:' .. me)
end
if held + granted > 0 then
  redis.call('HSET', key, 'l:' .. me, string.format('%.0f|%.0f', held + granted, now + lease_millis))
else
  redis.call('HDEL', key, 'l:' .. me)
end
redis.call('EXPIRE', key, ttl_seconds)

local function clamped(n) return math.max(-MOST, math.min(MOST, n)) end
return { granted, clamped(spent), clamped(left - granted) }
