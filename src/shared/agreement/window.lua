-- One replica asks for requests or tokens of one account within a moving window.
--
-- KEYS[1]  a hash: step (its first second, by this server's clock) -> how much was given out in it.
--          A step is one second, or more where the window is long, so that there are few of them.
-- ARGV     limit, window (s), step (s), want, share, adjust, then pairs: step, how much of it was not used
-- Answer   granted, step of the grant, used, milliseconds until there is room, milliseconds the step lasts
--
-- A step counts until all of it is older than the window. So no window of that length, wherever it
-- begins, ever holds more than the limit.
local MOST = 9e15
local key = KEYS[1]
local limit, window, step = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local want, share, adjust = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local time = redis.call('TIME')
local seconds = tonumber(time[1])
local now = seconds * 1000 + math.floor(tonumber(time[2]) / 1000)
local current = seconds - seconds % step

local counts, gone, changed = {}, {}, {}
local function add(at, n)
  counts[at] = math.max(0, math.min(MOST, (counts[at] or 0) + n))
  changed[at] = true
end

local flat = redis.call('HGETALL', key)
for i = 1, #flat, 2 do
  local at, n = tonumber(flat[i]), tonumber(flat[i + 1])
  if not at or not n or at + step + window <= seconds then
    gone[#gone + 1] = flat[i]
  elseif at > current then
    -- The clock went back (another server took over): what lies ahead counts as of now.
    gone[#gone + 1] = flat[i]
    add(current, n)
  else
    counts[at] = (counts[at] or 0) + n
  end
end

for i = 7, #ARGV - 1, 2 do
  local at, n = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  at = at - at % step
  if counts[at] then add(at, -n) end
end

local function sorted()
  local steps = {}
  for at in pairs(counts) do steps[#steps + 1] = at end
  table.sort(steps)
  return steps
end

if adjust > 0 then
  add(current, adjust)
elseif adjust < 0 then
  -- From the oldest on: what is newer stays counted for as long as it may have to.
  local back = -adjust
  for _, at in ipairs(sorted()) do
    local n = math.min(back, counts[at])
    if n > 0 then add(at, -n) end
    back = back - n
  end
end

local used = 0
for _, n in pairs(counts) do used = used + n end
local left = limit - used
local granted = 0
if want > 0 and left >= want then
  granted = math.min(left, math.max(want, share))
  add(current, granted)
  used = used + granted
end

-- When granted, until nothing counts any more; else until enough of the oldest has left.
local resets, freed = 0, 0
if granted > 0 then
  resets = (current + step + window) * 1000 - now
else
  for _, at in ipairs(sorted()) do
    if counts[at] > 0 then
      resets = (at + step + window) * 1000 - now
      freed = freed + counts[at]
      if want > 0 and left + freed >= want then break end
    end
  end
end

for _, field in ipairs(gone) do redis.call('HDEL', key, field) end
for at in pairs(changed) do
  local field = string.format('%.0f', at)
  if counts[at] > 0 then
    redis.call('HSET', key, field, string.format('%.0f', counts[at]))
  else
    redis.call('HDEL', key, field)
  end
end
redis.call('EXPIRE', key, window + 2 * step)

return { granted, current, math.min(used, MOST), resets, (current + step) * 1000 - now }
