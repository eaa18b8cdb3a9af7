-- The requests that wrk sends: the same GET to hello, otherwise redemptions, each for another customer.
-- Arguments: expected status (200 or 201), API key, code, number of customers, step between customers, threads.

local made = 0

function setup(thread)
  thread:set("number", made)
  made = made + 1
end

function init(args)
  customers = tonumber(args[4] or 1)
  stride = tonumber(args[5] or 1)
  threads = tonumber(args[6] or 1)
  sent = number
  if args[1] == "200" then
    hello = wrk.format("GET", "/")
    return
  end
  head = "POST /api/v1/redemptions HTTP/1.1\r\nHost: " .. wrk.headers["Host"]
    .. "\r\nAuthorization: Bearer " .. args[2]
    .. "\r\nContent-Type: application/json\r\nContent-Length: "
  before = '{"code": "' .. args[3] .. '", "customer": {"email": "customer.'
  after = '@example.com"}}'
end

function request()
  if hello then
    return hello
  end
  local body = before .. string.format("%d", sent * stride % customers + 1) .. after
  sent = sent + threads
  return head .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"responses": %d, "refused": %d, "broken": %d, "seconds": %.6f, "p50": %d, "p99": %d}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99)
  ))
end
