-- Decides on the limits of some requests, and settles what this node holds of their keys.
local KINDS = { [0] = bucket, window, window, window, slots }

local keys = {}
for i, name in ipairs(KEYS) do
  local k = { name = name, rule = number() }
  k.kind = KINDS[k.rule]
  k.kind.open(k)
  keys[i] = k
end

local answer = { now }
local groups = number()
local decided = {}
for _ = 1, groups do
  local count, book, size = number(), number(), number()
  local asks = {}
  local n = count
  for i = 1, size do
    local k = keys[number()]
    local ask = { k = k, kind = k.kind, cost = number(), shadow = number() }
    ask.n = k.kind.times(k, ask.cost, count, 0)
    if ask.shadow == 0 then
      n = math.min(n, ask.n)
    end
    asks[i] = ask
  end
  -- One key that is asked for twice.
  local again = true
  while again and n > 0 do
    again = false
    local sums = {}
    for _, ask in ipairs(asks) do
      if ask.shadow == 0 then
        sums[ask.k] = (sums[ask.k] or 0) + ask.cost * n
      end
    end
    for k, sum in pairs(sums) do
      again = again or (sum > 0 and not k.kind.has(k, sum, 0))
    end
    if again then
      n = n - 1
    end
  end
  for pass = 0, 1 do
    for _, ask in ipairs(asks) do
      if ask.shadow == pass then
        local times = pass == 0 and n or math.min(n, ask.kind.times(ask.k, ask.cost, n, 0))
        ask.kind.charge(ask.k, ask.cost * times)
      end
    end
  end
  decided[#decided + 1] = n
  decided[#decided + 1] = book > 0 and n < count and asks[1].kind.book(asks[1].k, book) or 0
  for _, ask in ipairs(asks) do
    decided[#decided + 1] = ask.n
  end
end

for _, k in ipairs(keys) do
  for _, value in ipairs({ k.kind.close(k) }) do
    answer[#answer + 1] = value
  end
end
for _, value in ipairs(decided) do
  answer[#answer + 1] = value
end
return answer
