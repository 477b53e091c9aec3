-- Counters of windows: fixed, sliding, and of a calendar.
--
-- The value of a key is five whole numbers:
--   which window it is (its number; of a fixed one when it began), what was taken from the one
--   before and from it, the generation, and up to where it was healed.
local window = {}
local FIXED, SLIDING = 1, 2
local DAY = 86400
local MONTH = 3
local LENGTHS = { [0] = 3600, DAY, 7 * DAY }

-- The month since the year 0 that a day since 1970 is in.
-- By Howard Hinnant, "chrono-compatible low-level date algorithms".
local function month_of(day)
  local floor = math.floor
  day = day + 719468
  local era = floor(day / 146097)
  local of_era = day % 146097
  local leaps = floor(of_era / 1460) - floor(of_era / 36524) + floor(of_era / 146096)
  local year = floor((of_era - leaps) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  return (era * 400 + year) * 12 + floor((5 * of_year + 2) / 153) + 2
end

-- The first day of a month, since 1970.
local function first_day(month)
  local floor = math.floor
  local year = floor((month - 2) / 12)
  local era = floor(year / 400)
  local of_era = year % 400
  local of_year = floor((153 * ((month - 2) % 12) + 2) / 5)
  local leaps = floor(of_era / 4) - floor(of_era / 100)
  return era * 146097 + of_era * 365 + leaps + of_year - 719468
end

-- The number of the window of a time, and when it ends.
local function place(k, time)
  if k.rule == SLIDING then
    local n = math.floor(time / k.length)
    return n, (n + 1) * k.length
  end
  -- An offset is sent as one that is not negative.
  local unit, offset = k.length, k.grain - 64800
  local here = math.floor(time / 10000000) + YEAR_2025 + offset
  local n, last
  if unit == MONTH then
    n = month_of(math.floor(here / DAY))
    last = first_day(n + 1) * DAY
  else
    -- The first of January 1970 was a Thursday.
    local shift = unit == 2 and 3 * DAY or 0
    n = math.floor((here + shift) / LENGTHS[unit])
    last = (n + 1) * LENGTHS[unit] - shift
  end
  return n, (last - offset - YEAR_2025) * 10000000
end

-- What is left. Of a window that slides the one before counts by the part that it still covers.
local function free(k)
  if k.rule ~= SLIDING then
    return math.max(0, k.amount - k.taken)
  end
  local ticks = math.ceil(k.length / k.grain)
  local gone = math.floor((now - k.id * k.length) / k.grain)
  local left = (k.amount - k.taken) * ticks - k.before * (ticks - gone)
  return left > 0 and math.floor(left / ticks) or 0
end

local function load(k)
  local value = redis.call('GET', k.name)
  local id, before, taken, gen, healed
  if value then
    id, before, taken, gen, healed = string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  end
  if id then
    k.id, k.before, k.taken = tonumber(id), tonumber(before), tonumber(taken)
    k.gen, k.healed = tonumber(gen), tonumber(healed)
  else
    k.before, k.taken, k.gen, k.healed = 0, 0, nonce, 0
  end
  if k.rule == FIXED then
    local over = not id or k.id + k.length <= now
    if over then
      k.before, k.taken, k.healed = 0, 0, 0
    end
    -- One that is ahead was begun by a clock that was set back since.
    if over or k.taken == 0 or k.id > now then
      k.id = now
    end
    k.fin = k.id + k.length
    return
  end
  local n, fin = place(k, now)
  k.fin = fin
  if not id then
    k.id = n
  elseif n > k.id then
    k.before = (k.rule == SLIDING and n == k.id + 1) and k.taken or 0
    k.id, k.taken, k.healed = n, 0, 0
  elseif k.rule == SLIDING or k.id > n + 1 then
    -- A clock that was set back opens no window again, and locks nobody out.
    k.id = n
  end
end

-- What the node knows of the key.
local function account(k)
  if k.reset == 1 then
    k.before, k.taken, k.gen, k.healed, k.dirty = 0, 0, nonce, FAR, true
    publish(k)
    return
  end
  k.knows = k.known > 0 and knows(k, k.taken)
  if k.known == 0 or k.knows or k.healed == FAR then
    return
  end
  -- What the node has seen of the window holds.
  local same = k.mark == k.id
  if k.rule == FIXED then
    same = k.mark <= now and k.mark + k.length > now and k.hint > 0
  end
  if same and k.hint > k.healed then
    if k.rule == FIXED and k.mark < k.id then
      k.id, k.fin = k.mark, k.mark + k.length
    end
    k.taken = math.min(2 * k.amount, k.taken + k.hint - k.healed)
    k.healed, k.dirty = k.hint, true
  end
  if k.rule == SLIDING then
    local before = same and k.earlier or (k.mark + 1 == k.id and k.hint or 0)
    if before > k.before then
      k.before, k.dirty = before, true
    end
  end
end

-- What was used already, up to one capacity below empty.
local function owe(k)
  if k.owed == 0 then
    return
  end
  local lowest = 2 * k.amount
  if k.rule == FIXED then
    if k.age >= k.length then
      return
    end
    if k.taken == 0 then
      k.id = now - k.age
      k.fin = k.id + k.length
    end
  else
    local n = place(k, now - k.age)
    if n < k.id then
      if k.rule == SLIDING and n + 1 == k.id then
        k.before, k.dirty = math.max(k.before, math.min(lowest, k.before + k.owed)), true
      end
      return
    end
  end
  k.taken, k.dirty = math.max(k.taken, math.min(lowest, k.taken + k.owed)), true
end

-- Nothing comes back of what was lost or reset since, nor of a window that is over.
local function refund(k)
  if k.refund == 0 or not k.knows then
    return
  end
  local left = free(k)
  if k.of == k.id then
    k.taken = math.max(0, k.taken - k.refund)
  elseif k.rule == SLIDING and k.of + 1 == k.id then
    k.before = math.max(0, k.before - k.refund)
  else
    return
  end
  k.dirty = true
  if left < k.refund then
    publish(k)
  end
end

function window.has(k, n)
  return n <= free(k)
end

function window.times(k, cost, m)
  return cost == 0 and m or math.min(m, math.floor(free(k) / cost))
end

function window.charge(k, n)
  if n > 0 then
    k.taken, k.dirty = k.taken + n, true
  end
end

function window.open(k)
  k.length, k.grain, k.amount = number(), number(), number()
  k.known, k.mark, k.earlier, k.hint = number(), number(), number(), number()
  k.owed, k.age, k.refund, k.of = number(), number(), number(), number()
  k.want, k.nodes, k.reset = number(), number(), number()
  load(k)
  account(k)
  owe(k)
  refund(k)
end

function window.close(k)
  -- The less is left, the less is given before it is asked for.
  local added = math.min(k.want, math.floor(free(k) / (2 * k.nodes)))
  window.charge(k, added)
  if k.dirty then
    wrote(k)
    local last = k.rule == SLIDING and k.fin + k.length or k.fin
    keep(k, last, k.id, k.before, k.taken, k.gen, k.healed)
  end
  return k.id, k.before, k.taken, k.gen, k.fin, added
end
