-- Decides demands in order, each for all of its items or none, in one step.
--
-- KEYS: counters and what was allowed before, referred to by place. ARGV[1]: '1' to write nothing. ARGV[2]: milliseconds
-- for which what was allowed is remembered. ARGV[3]: JSON list of demands: the place of its memory or 0, its print, its
-- lease, then of each item the place of its counter, its kind (1 rate, 2 concurrent requests), the most, what is taken
-- and whether it is denied when it does not fit (1 or 0). Of a rate both are ticks of 125 ns; of concurrent requests the
-- most is a number, and what is taken are the milliseconds of a place.
-- Answers with the time in ticks since 2025; then for each demand 0 denied, 1 allowed, 2 allowed before, 3 the memory is
-- another one's; the lease when it is another one than given, else ''; then for each item 1 or 0 whether it fits, and
-- how far the rate is ahead of now in ticks, or how many places are taken.
local dry = ARGV[1] == '1'
local remember = ARGV[2]
local clock = redis.call('TIME')
local now = (clock[1] - 1735689600) * 8000000 + clock[2] * 8
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local arrivals, changed = {}, {}
local answer = {now}

local function put(value)
  answer[#answer + 1] = value
end

-- The theoretical arrival time of a rate, never before now, and never further ahead than the most: the quota may have
-- become smaller, and the clock may have gone back.
local function arrival(counter, most)
  local at = arrivals[counter]
  if at == nil then
    at = tonumber(redis.call('GET', KEYS[counter]) or now)
  end
  at = math.min(math.max(at, now), now + most)
  arrivals[counter] = at
  return at
end

local function places(counter)
  return redis.call('ZCOUNT', KEYS[counter], '(' .. string.format('%.0f', now_ms), '+inf')
end

local function take_place(counter, lease, milliseconds)
  local key = KEYS[counter]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now_ms))
  redis.call('ZADD', key, string.format('%.0f', now_ms + milliseconds), lease)
  redis.call('PEXPIRE', key, math.max(redis.call('PTTL', key), milliseconds + 1000))
end

for _, demand in ipairs(cjson.decode(ARGV[3])) do
  local memory, print, lease = demand[1], demand[2], demand[3]
  local verdict, earlier = 1, ''
  if memory > 0 then
    local kept = redis.call('GET', KEYS[memory])
    if kept then
      verdict = string.sub(kept, 1, #print) == print and 2 or 3
      earlier = verdict == 2 and string.sub(kept, #print + 1) or ''
    end
  end
  local fits = {}
  for i = 4, #demand, 5 do
    local counter, kind, most, taken = demand[i], demand[i + 1], demand[i + 2], demand[i + 3]
    if kind == 1 then
      fits[i] = arrival(counter, most) + taken - now <= most
    else
      fits[i] = places(counter) < most
    end
    if verdict == 1 and not fits[i] and demand[i + 4] == 1 then
      verdict = 0
    end
  end
  put(verdict)
  put(earlier)
  for i = 4, #demand, 5 do
    local counter, kind, taken = demand[i], demand[i + 1], demand[i + 3]
    put(fits[i] and 1 or 0)
    if kind == 1 then
      if verdict == 1 and fits[i] then
        arrivals[counter] = arrivals[counter] + taken
        changed[counter] = true
      end
      put(arrivals[counter] - now)
    elseif verdict == 1 and not dry then
      take_place(counter, lease, taken)
      put(places(counter))
    else
      put(places(counter) + (verdict == 1 and taken > 0 and 1 or 0))
    end
  end
  if verdict == 1 and memory > 0 and not dry then
    redis.call('SET', KEYS[memory], print .. lease, 'PX', remember)
  end
end

if not dry then
  for counter in pairs(changed) do
    local at = arrivals[counter]
    redis.call('SET', KEYS[counter], string.format('%.0f', at), 'PX', math.ceil((at - now) / 8000) + 1)
  end
end
return answer
